"""``python -m unlearnlib.report --profile PROFILE``, see `pages`."""

from unlearnlib.report.pages import main

main()
