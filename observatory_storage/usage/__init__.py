"""What counts as usage, and how it is added up; all that writers and maintenance must do alike."""
