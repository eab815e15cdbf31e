"""`adpfl compare`: methods x starts x seeds on one fold, one table. methods -> tuning -> runs -> statistics -> table."""
