"""Reviews: what a change of an experiment means, in the words of a reviewer."""
