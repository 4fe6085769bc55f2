"""The laboratory's quantizers as pure functions on tensors: one linear layer at a time, no model.

    solve(weight [out, in], hessian [in, in], grid rules, *, options) -> Solution

``hessian`` is X X^T, times anything: X [in, tokens] are the inputs of the layer, and no solver depends
on its scale. Nothing that is passed in is changed. Everything is computed in float32.

    base.py       GridRules, Solution, the loss, and whether a solution lies on its grid
    rounding.py   onto which grid a column is rounded, and where groups begin
    feedback.py   error feedback column by column (GPTQ, SpQR), and the factor that it needs
    rtn.py  gptq.py  quantease.py  outliers.py (QuantEase with outliers)  spqr.py
    clipping.py   AWQ's: round to nearest on ranges that are cut
"""
