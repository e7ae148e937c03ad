"""lit_fast: compress deep networks by Learned Intermediate Representation Training (LIT, ICML 2019)."""

__version__ = "0.1.0"
