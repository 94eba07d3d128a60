"""What can be done with weights: each verb is a function of one weight and a fold, and takes its engine as ``run``."""
