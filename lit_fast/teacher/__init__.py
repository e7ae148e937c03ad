"""The frozen teacher, and its parts as programs for the C++ runner."""
