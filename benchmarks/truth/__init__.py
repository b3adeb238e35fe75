"""Material whose joints are known, and how far an answer is from them; numpy alone."""
