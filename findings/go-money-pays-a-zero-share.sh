#!/usr/bin/env bash
# Versions: go-money 1.0.15 (Go modules); rusty-money 0.5.1 (crates.io) beside it.
#
# Behaviour: Allocate(0, 1, 1) of 101 cents gives 1, 50, 50. The cent that does not divide goes to whoever stands first, also when the
#   share there is 0. rusty-money, asked the same, gives the nought nothing.
# What most expect: a share of 0 is 0; the cent goes to the first of those who take part.
# What it costs: a refund or a commission of one cent to a party that has no part in it, and a cent less for one that has; only for
#   amounts that do not divide, so round prices in tests never show it. Leave the noughts out before Allocate.
#
# Output seen:
#   go-money: 1 50 50
#   rusty-money: 0 51 50
#
# Needs go and cargo; installs nothing on the system. Ends with 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p split shares/src
cat >split/go.mod <<'MOD'
module split

go 1.24

require github.com/Rhymond/go-money v1.0.15
MOD
cat >split/main.go <<'GO'
package main

import (
	"fmt"

	"github.com/Rhymond/go-money"
)

func main() {
	parts, err := money.New(101, money.CNY).Allocate(0, 1, 1)
	if err != nil {
		panic(err)
	}
	for _, part := range parts {
		fmt.Print(" ", part.Amount())
	}
}
GO
(cd split && GOMODCACHE=$work/modules GOFLAGS='-mod=mod -modcacherw' go build -o call . 2>build.log) ||
  { cat split/build.log >&2; exit 1; }
cat >shares/Cargo.toml <<'TOML'
[package]
name = "shares"
version = "0.0.0"
edition = "2021"
[dependencies]
rusty-money = "=0.5.1"
TOML
cat >shares/src/main.rs <<'RUST'
use rusty_money::{iso, Money};

fn main() {
    for part in Money::from_minor(101, iso::CNY).allocate(vec![0, 1, 1]).expect("shares") {
        print!(" {}", part.to_minor_units());
    }
}
RUST
(cd shares && cargo build -q 2>&1)
seen="go-money:$(split/call)
rusty-money:$(shares/target/debug/shares)"
echo "$seen"
[ "$seen" = 'go-money: 1 50 50
rusty-money: 0 51 50' ] || { echo 'the behaviour has changed' >&2; exit 1; }
