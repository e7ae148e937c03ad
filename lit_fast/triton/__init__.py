"""The fused LIT loss, batches of data, and BatchNorm in training, as Triton kernels.

All modules but ``support`` import Triton: nothing of them is imported before it is needed.

| module | what |
|---|---|
| ``maths`` | element losses, KL share of a class, roundings: the formulas of ``kernels/math.h`` |
| ``scalars`` | numbers and lists of tensors as kernel arguments |
| ``ir``, ``kd`` | the work of one program: blocks of a section, rows of logits |
| ``batch_norm_kernels``, ``batch_norm`` | BatchNorm in training: its kernels, and their launches |
| ``stages`` | the kernels of the loss: stage one does all the work, stage two sums what it leaves |
| ``support`` | whether Triton can run them on a device |
| ``launch`` | a launch of a kernel, and how one takes tensors of many sizes |
| ``loss`` | the host's side of the loss: which kernels it takes, with which arguments |
| ``rescale`` | the kernel that multiplies gradients by a factor, and its launches |
| ``gather`` | the kernel that makes a batch of a dataset on the GPU, and its launch |
"""
