"""CMU-MOSI: sentiment of spoken film reviews (Zadeh et al., 2016), utterances in video context."""
