// Package config reads a program's options from flags, environment and a YAML file.
//
// What it does. Each option is declared once, with its default, its bounds and a sentence. Load fills the
// options in with the precedence flag > environment > file > default and remembers where each value came
// from. The file is read strictly: an unknown or repeated key, a value out of bounds or of the wrong kind
// is an error that names file, line and, for a misspelt key, the nearest known one. All faults are listed
// at once.
//
// What it assumes. Option names are lower case with hyphens: data-dir is --data-dir, KVSTORE_DATA_DIR and,
// in the file, data-dir or data_dir.
//
// Who owns what. A Set belongs to one goroutine; the variables it fills belong to the caller.
//
// What it never does. It reads no file but the one that --config names, and it never passes over a key
// of the file. Unknown environment variables with the prefix are passed over, since container platforms
// inject such (KVSTORE_SERVICE_HOST, for a service named kvstore).
package config
