"""What every reinforcement-learning run records, and the alarms that name a likely cause and a knob."""
