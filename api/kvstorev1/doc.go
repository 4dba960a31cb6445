// Package kvstorev1 is the gRPC interface kvstore.v1: messages, client and server generated from kvstore.proto by
// `make proto`.
//
// It assumes nothing, owns nothing and never holds code written by hand: what the calls mean stands in the .proto and
// package gateway serves them. Programs in other languages generate theirs from the same file.
package kvstorev1
