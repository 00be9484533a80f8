"""What experts compute, routing given: the reference, and the forms that are fast on CPUs."""
