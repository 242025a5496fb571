"""Figures and animations; with them comes matplotlib, so they are imported where one is drawn."""
