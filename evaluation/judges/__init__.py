"""Networks that judge images, built from published files of weights; their sizes are the files' own shapes."""
