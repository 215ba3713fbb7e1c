"""How a gradient becomes a step: rules, and combinators of rules."""

from optscope.optim.adaptive import Adam, AdamW, RMSProp
from optscope.optim.graft import Graft
from optscope.optim.players import Players
from optscope.optim.rule import Rule
from optscope.optim.schedules import Constant, Cosine, Decayed, Schedule, Scheduled, StepDecay
from optscope.optim.sgd import SGD
from optscope.optim.sign import NormalizedSGD, SignSGD
from optscope.optim.torch_bridge import Foreign

__all__ = ["SGD", "Adam", "AdamW", "Constant", "Cosine", "Decayed", "Foreign", "Graft", "NormalizedSGD",
           "Players", "RMSProp", "Rule", "Schedule", "Scheduled", "SignSGD", "StepDecay"]
