"""How a gradient becomes a step: rules, and combinators of rules."""

from optscope.optim.accumulated import Adagrad, AdEMAMix, NAdam
from optscope.optim.adaptive import Adam, AdamW, RMSProp
from optscope.optim.agreement import AdaRem
from optscope.optim.by_kind import ByKind, Where
from optscope.optim.elsewhere import SAM, Extrapolated, GradientPenalty
from optscope.optim.factored import Adafactor
from optscope.optim.foreign import Foreign
from optscope.optim.gradients import MARS, Noisy, RelativeClip
from optscope.optim.graft import Graft
from optscope.optim.implicit import ImplicitSGD
from optscope.optim.lion import Lion
from optscope.optim.momentum import Momentum, matched
from optscope.optim.muon import Muon
from optscope.optim.parameter_free import DAdaptAdam, DAdaptSGD, Prodigy
from optscope.optim.players import Players
from optscope.optim.polar import PolarSGD
from optscope.optim.positive_negative import PNM, AdaPNM
from optscope.optim.rounding import Rounded
from optscope.optim.rule import Rule
from optscope.optim.schedule_free import ScheduleFree
from optscope.optim.schedules import Constant, Cosine, Decayed, Linear, Schedule, Scheduled, StepDecay
from optscope.optim.sgd import SGD
from optscope.optim.shampoo import SOAP, Shampoo
from optscope.optim.sign import NormalizedSGD, SignSGD
from optscope.optim.svag import SVAG
from optscope.optim.trust_ratio import LAMB, LARS
from optscope.optim.variance_averaged import LaMAdam, MAdam

__all__ = ["LAMB", "LARS", "MARS", "PNM", "SAM", "SGD", "SOAP", "SVAG", "AdEMAMix", "AdaPNM", "AdaRem",
           "Adafactor", "Adagrad", "Adam", "AdamW", "ByKind", "Constant", "Cosine", "DAdaptAdam",
           "DAdaptSGD", "Decayed", "Extrapolated", "Foreign", "GradientPenalty", "Graft", "ImplicitSGD",
           "LaMAdam", "Linear", "Lion", "MAdam", "Momentum", "Muon", "NAdam", "Noisy", "NormalizedSGD",
           "Players", "PolarSGD", "Prodigy", "RMSProp", "RelativeClip", "Rounded", "Rule", "Schedule",
           "ScheduleFree", "Scheduled", "Shampoo", "SignSGD", "StepDecay", "Where", "matched"]
