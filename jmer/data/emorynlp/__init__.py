"""EmoryNLP: emotion in the scenes of Friends (Zahiri and Choi, 2018), as text."""
