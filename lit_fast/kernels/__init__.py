"""The fused LIT loss, batches of data, and BatchNorm in training, as Triton kernels.

The modules import Triton: nothing here is imported before it is needed.

| module | what |
|---|---|
| ``maths`` | element losses, KL share of a class, roundings: the formulas of ``kernels/math.h`` |
| ``scalars`` | numbers and lists of tensors as kernel arguments |
| ``ir``, ``kd`` | the work of one program: blocks of a section, rows of logits |
| ``stages`` | the kernels: stage one does all the work, stage two sums what it leaves |
| ``launch`` | the host's side: which kernels a loss takes, with which arguments |
| ``rescale`` | the kernel that multiplies gradients by a factor, and its launches |
| ``gather`` | the kernel that makes a batch of a dataset on the GPU, and its launch |
"""
