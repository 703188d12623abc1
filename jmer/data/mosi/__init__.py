"""CMU-MOSI: sentiment of spoken film reviews (Zadeh et al., 2016), as utterance features in video context."""
