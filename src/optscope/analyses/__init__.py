"""What the records of a comparison say: each analysis is a function from a comparison and records to a section."""
