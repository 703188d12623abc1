"""RAVDESS: eight acted emotions, spoken by 24 actors (Livingstone and Russo, PLoS ONE 2018)."""
