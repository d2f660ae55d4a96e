from fastcam.cli import main

main()
