"""Tables, figures and the one HTML file; sees evidence only."""
