"""Settings with a few named values, for the code and for configs: beside the code, they would cost a config the import
of torch's compiler.
"""

from typing import Literal

BlockChoice = Literal["spread", "first", "last"]
Engine = Literal["auto", "runner", "eager"]
IRKind = Literal["l2", "l1", "smooth_l1"]
Precision = Literal["fp32", "bf16", "fp16"]
SplitHow = Literal["auto", "traced", "recorded"]
StatsPolicy = Literal["composed", "both", "teacher_fed", "recalibrate"]
StudentInput = Literal["teacher", "composed"]
Switch = bool | Literal["auto"]
TargetsKind = Literal["classification", "dense", "tokens", "causal_lm"]
