"""What a model is: one data file per family, turned into a Plan."""
