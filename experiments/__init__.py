"""The only package that joins the others: configs, one run, the verbs, the tiny models."""
