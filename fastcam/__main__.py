from fastcam.cli.commands import main

main()
