"""Compressing a GAN's generator: adversarial training, the LIT phase on its bottleneck, fine-tuning, sample grids."""
