"""The teacher's and the student's forward passes in one step, and what they share."""
