"""What answers for the candidates: recordings, local models, program tools."""
