"""What the harness made, as folders for others."""
