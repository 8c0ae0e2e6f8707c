"""Networks that judge images, of published files of weights and of the sizes that these have."""
