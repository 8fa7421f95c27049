"""What the findings measure: errors of channels, and runs side by side."""
