"""How fast a training step is: the ways to compute it, timed in turns, and a picture of where the time goes."""
