"""Looking at a teacher and a student before they are trained."""
