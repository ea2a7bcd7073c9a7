"""Colours that people with any colour vision tell apart, shared by the pictures."""

# Petroff 2021, Accessible Color Sequences for Data Visualization: the ten-colour sequence.
COLORS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
INK = "#333333"
FAINT = "#dddddd"
