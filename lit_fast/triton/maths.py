"""The maths of the LIT loss, element by element: ``kernels/math.h`` in Triton.

    L_IR = sum_i w_i mean(l(student_i - teacher_i))                                       paper eq. 3
    L_KD = alpha CE(z_s, y) + (1 - alpha) tau^2 KL(softmax(z_t/tau) || softmax(z_s/tau))  paper eq. 2

Triton's interpreter cuts bits off where it should round to bfloat16: there, bfloat16 is converted by its bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sign(d):
    """-1, 0 or 1; NaN stays NaN, so that a diverged section shows in its gradient."""
    return tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, d))


# TRITON_INTERPRET was set when Triton was imported.
INTERPRETED = tl.constexpr(not isinstance(sign, triton.JITFunction))

# --- reading and writing


@triton.jit
def widened(x, DTYPE: tl.constexpr):
    """x in the type that is computed in, exactly."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        wide = bits.to(tl.float32, bitcast=True)
    elif x.dtype == tl.float64:
        wide = x
    else:
        wide = x.to(tl.float32)
    return wide.to(DTYPE)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x rounded to the nearest number of a tensor's type, to even where two are as near."""
    if INTERPRETED and dtype == tl.bfloat16:
        narrow = x.to(tl.float32)
        bits = narrow.to(tl.uint32, bitcast=True)
        odd = (bits >> 16) & 1
        kept = (bits + (odd + 0x7FFF)) >> 16
        quiet = tl.where(narrow == narrow, kept, 0x7FC0)  # a NaN's bits could carry over into a number's
        y = quiet.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    elif dtype == tl.bfloat16:
        y = x.to(tl.float32).to(dtype)
    else:
        y = x.to(dtype)
    return y


# --- eq. 3: one element of an IR


@triton.jit
def ir_element(d, KIND: tl.constexpr):
    """l(d) and l'(d) for d = student - teacher; KIND 0: l2, 1: l1, 2: smooth l1 with threshold 1."""
    magnitude = tl.abs(d)
    if KIND == 0:
        loss = d * d
        slope = 2.0 * d
    elif KIND == 1:
        loss = magnitude
        slope = sign(d)
    else:
        inside = magnitude < 1.0
        loss = tl.where(inside, 0.5 * d * d, magnitude - 0.5)
        slope = tl.where(inside, d, sign(d))
    return loss, slope


# --- eq. 2: one class of a row


@triton.jit
def log1p(x):
    """log(1 + x) for x > -1, to its last bits: what 1 + x loses by its rounding, x / (y - 1) restores."""
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.log(y) * (x / (y - 1.0)))


@triton.jit
def exp_minus_tangent(x, LAST: tl.constexpr):
    """e^x - 1 - x for |x| < 1 by its series x^2/2 (1 + x/3 (1 + x/4 (... x/LAST))): 11 for float32, 18 for float64."""
    series = 1.0 + x * (1.0 / LAST)
    for n in tl.static_range(1, LAST - 2):
        series = 1.0 + x * series * (1.0 / (LAST - n))
    return 0.5 * x * x * series


@triton.jit
def kl_element(p, q, delta, LAST: tl.constexpr):
    """One class's share of KL(p || q), and q - p, from p (teacher), q (student) and delta = log q - log p.

    KL = sum p (e^delta - 1 - delta), because sum q = sum p = 1. Every share is >= 0 and of second order in delta, so
    rows that nearly agree cancel nothing, and an error common to all deltas, that of the normalisers, is of second
    order too. Where p = 0, delta plays no role: 0 * inf := 0.
    """
    near = (delta > -1.0) & (delta < 1.0)
    x = tl.where(near, delta, 0.0)
    curve = exp_minus_tangent(x, LAST)
    far = q - p - tl.where(p == 0.0, 0.0, p * delta)
    return tl.where(near, p * curve, far), tl.where(near, p * (x + curve), q - p)


@triton.jit
def is_masked(logit):
    """Whether a logit is -inf, which takes its class out of the softmax."""
    return logit == float("-inf")


@triton.jit
def weighted_log(weight, log_p):
    """weight * log p, where a weight of 0 silences a masked class (log p = -inf); NaN stays NaN."""
    return tl.where((weight == 0.0) & is_masked(log_p), 0.0, weight * log_p)
