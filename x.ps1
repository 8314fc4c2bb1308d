<#
.SYNOPSIS
    The one command for work on inknib under Windows: .\x.ps1 help
.DESCRIPTION
    What ./x is on Linux and macOS. It installs what is missing (Rust through rustup; Visual Studio's build tools through
    winget) and shows each command before it runs. Direct3D 12, with WARP as its software adapter, is part of Windows.
#>
param([string]$Command = "help", [Parameter(ValueFromRemainingArguments = $true)][string[]]$Rest = @())
$ErrorActionPreference = "Stop"
Set-Location $PSScriptRoot

function Say([string]$text) { [Console]::Error.WriteLine($text) }
function Have([string]$name) { $null -ne (Get-Command $name -ErrorAction SilentlyContinue) }
function Die([string]$text) { Say "x: $text"; exit 1 }

# Runs a program, shows it first, and returns whether it succeeded.
function Run {
    $program, $arguments = $args
    Say "+ $($args -join ' ')"
    & $program @arguments | Out-Host
    return $LASTEXITCODE -eq 0
}

function Read-Field([string]$file, [string]$key) {
    $line = Select-String -Path $file -Pattern "^$key\s*=\s*`"([^`"]*)`"" | Select-Object -First 1
    return $line.Matches[0].Groups[1].Value
}

# The linker of Visual Studio's C++ tools, which Rust's default Windows toolchain needs.
function Install-Linker {
    $finder = "${env:ProgramFiles(x86)}\Microsoft Visual Studio\Installer\vswhere.exe"
    if (Test-Path $finder) {
        $found = & $finder -products * -requires Microsoft.VisualStudio.Component.VC.Tools.x86.x64 -property installationPath
        if ($found) { return }
    }
    if (-not (Have winget)) { Die "no C++ build tools and no winget. Install 'Build Tools for Visual Studio' with the C++ workload" }
    $workload = "--wait --passive --add Microsoft.VisualStudio.Workload.VCTools --includeRecommended"
    $ok = Run winget install --id Microsoft.VisualStudio.2022.BuildTools --accept-source-agreements --accept-package-agreements --override $workload
    if (-not $ok) { Die "the build tools could not be installed" }
}

function Install-Rust {
    $home_of_cargo = if ($env:CARGO_HOME) { $env:CARGO_HOME } else { Join-Path $env:USERPROFILE ".cargo" }
    $env:PATH = (Join-Path $home_of_cargo "bin") + ";" + $env:PATH
    if (-not (Have rustup)) {
        if (Have cargo) { return } # a Rust without rustup: cargo itself says so when it is too old
        $machine = if ($env:PROCESSOR_ARCHITECTURE -eq "ARM64") { "aarch64" } else { "x86_64" }
        $installer = Join-Path $env:TEMP "rustup-init.exe"
        Say "+ download https://win.rustup.rs/$machine"
        Invoke-WebRequest -UseBasicParsing "https://win.rustup.rs/$machine" -OutFile $installer
        if (-not (Run $installer -y -q --no-modify-path --profile minimal --default-toolchain none)) { Die "rustup's installer failed" }
        Remove-Item $installer
    }
    $channel = Read-Field "rust-toolchain.toml" "channel"
    if (-not ((& rustup toolchain list) -match "^$([regex]::Escape($channel))-")) {
        if (-not (Run rustup toolchain install $channel --profile minimal --component rustfmt --component clippy)) {
            Die "Rust $channel could not be installed (no network?)"
        }
    }
}

function Setup { Install-Linker; Install-Rust }
function Build { Setup; if (-not (Run cargo build --release --locked)) { exit 1 } }

function Test-All {
    Setup
    $failed = @()
    if (-not (Run cargo fmt --check)) { $failed += "formatting" }
    if (-not (Run cargo clippy --locked --all-targets "--" -D warnings)) { $failed += "lints" }
    $log = New-TemporaryFile
    Say "+ cargo test --locked --no-fail-fast $($Rest -join ' ')"
    $ErrorActionPreference = "Continue" # cargo's progress is on stderr, which is no error
    & cargo test --locked --no-fail-fast @Rest 2>&1 | ForEach-Object { "$_" } | Tee-Object -FilePath $log
    if ($LASTEXITCODE -ne 0) { $failed += "tests" }
    $sums = @{ passed = 0; failed = 0; ignored = 0 }
    foreach ($line in Get-Content $log) {
        if ($line -like "test result:*") {
            foreach ($match in [regex]::Matches($line, "(\d+) (passed|failed|ignored)")) {
                $sums[$match.Groups[2].Value] += [int]$match.Groups[1].Value
            }
        } elseif ($line -match "^test (\S+).*FAILED$") { Write-Output "failed: $($Matches[1])" }
    }
    Remove-Item $log
    if ($failed) { Write-Output "did not pass: $($failed -join ' ')" }
    Write-Output "$($sums.passed) passed, $($sums.failed) failed, $($sums.ignored) skipped"
    if ($failed) { exit 1 }
}

switch ($Command) {
    "setup" { Setup }
    "build" { Build }
    "demo" {
        Build
        $target = if ($env:CARGO_TARGET_DIR) { $env:CARGO_TARGET_DIR } else { "target" }
        if (-not (Run (Join-Path $target "release\inknib.exe") demo @Rest)) { exit 1 }
    }
    "test" { Test-All }
    "check" { Setup; if (-not (Run cargo check --locked --all-targets)) { exit 1 } }
    "fmt" { Install-Rust; if (-not (Run cargo fmt)) { exit 1 } }
    "clean" { Install-Rust; if (-not (Run cargo clean)) { exit 1 } }
    "help" { Write-Output "usage: .\x.ps1 setup | demo | test | build | check | fmt | clean   (see ./x help for what each does)" }
    default { Say "x: no such command: $Command (see .\x.ps1 help)"; exit 2 }
}
