"""A model at full size on the machine that is there: random weights, few tokens, every stage."""
