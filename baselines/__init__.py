"""Published methods and library peers, one file each, on top of segquant.core alone."""
