"""EmoDB: seven acted emotions in German, spoken by ten actors (Burkhardt et al., Interspeech 2005)."""
