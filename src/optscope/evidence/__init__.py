"""What was measured, what it says, and how it is to be shown; no torch here."""
