"""How a gradient becomes a step: rules, and combinators of rules."""

from optscope.optim.accumulated import Adagrad, AdEMAMix, NAdam
from optscope.optim.adaptive import Adam, AdamW, RMSProp
from optscope.optim.by_kind import ByKind, Where
from optscope.optim.foreign import Foreign
from optscope.optim.graft import Graft
from optscope.optim.lion import Lion
from optscope.optim.momentum import Momentum, matched
from optscope.optim.muon import Muon
from optscope.optim.players import Players
from optscope.optim.polar import PolarSGD
from optscope.optim.rounding import Rounded
from optscope.optim.rule import Rule
from optscope.optim.sam import SAM
from optscope.optim.schedule_free import ScheduleFree
from optscope.optim.schedules import Constant, Cosine, Decayed, Linear, Schedule, Scheduled, StepDecay
from optscope.optim.sgd import SGD
from optscope.optim.shampoo import SOAP, Shampoo
from optscope.optim.sign import NormalizedSGD, SignSGD
from optscope.optim.svag import SVAG
from optscope.optim.trust_ratio import LAMB, LARS

__all__ = ["LAMB", "LARS", "SAM", "SGD", "SOAP", "SVAG", "AdEMAMix", "Adagrad", "Adam", "AdamW", "ByKind",
           "Constant", "Cosine", "Decayed", "Foreign", "Graft", "Linear", "Lion", "Momentum", "Muon", "NAdam",
           "NormalizedSGD", "Players", "PolarSGD", "RMSProp", "Rounded", "Rule", "Schedule", "ScheduleFree",
           "Scheduled", "Shampoo", "SignSGD", "StepDecay", "Where", "matched"]
