"""What the papers predict in closed form; numpy and scipy only, no training."""
