"""What is measured on one trained model."""
