"""Who is where: people found, followed and told apart."""
