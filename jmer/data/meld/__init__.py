"""MELD: emotion in the conversations of Friends (Poria et al., ACL 2019), as text."""
