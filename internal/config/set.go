package config

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// ErrHelp is returned by Load when help was asked for and has been printed.
var ErrHelp = flag.ErrHelp

// option is one declared option.
type option struct {
	name, usage, def, bounds string
	section                  string
	isBool, flagOnly         bool
	set                      func(string) error
	origin                   string
}

// Set is a program's options.
type Set struct {
	program, prefix, head string
	options               []*option
	byName                map[string]*option
	section               string
	file                  string
}

// New makes an empty set. prefix begins the names of environment variables, such as "KVSTORE_"; head is
// printed above the options by --help. The option --config is always there.
func New(program, prefix, head string) *Set {
	s := &Set{program: program, prefix: prefix, head: head, byName: map[string]*option{}}
	s.String(&s.file, "config", "", "YAML file with options")
	return s
}

// Section begins a group of options in --help.
func (s *Set) Section(name string) { s.section = name }

func (s *Set) add(o *option) {
	if s.byName[o.name] != nil {
		panic("BUG: option " + o.name + " is declared twice")
	}
	o.section, o.origin = s.section, "default"
	s.options = append(s.options, o)
	s.byName[o.name] = o
	if err := o.set(o.def); err != nil {
		panic("BUG: default of option " + o.name + ": " + err.Error())
	}
}

// FlagOnly names options that ask for something once and so are read from flags alone. (Container images
// tend to set a variable such as KVSTORE_VERSION.)
func (s *Set) FlagOnly(names ...string) {
	for _, n := range names {
		s.byName[n].flagOnly = true
	}
}

// String declares a text.
func (s *Set) String(p *string, name, def, usage string) {
	s.add(&option{name: name, def: def, usage: usage, set: func(v string) error { *p = v; return nil }})
}

// Choice declares a text that must be one of choices.
func (s *Set) Choice(p *string, name, def string, choices []string, usage string) {
	s.add(&option{name: name, def: def, usage: usage, bounds: strings.Join(choices, " or "), set: func(v string) error {
		if !slices.Contains(choices, v) {
			return fmt.Errorf("%q is not %s", v, strings.Join(choices, " or "))
		}
		*p = v
		return nil
	}})
}

// Bool declares a switch.
func (s *Set) Bool(p *bool, name string, def bool, usage string) {
	s.add(&option{name: name, def: strconv.FormatBool(def), usage: usage, isBool: true, set: func(v string) error {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", v)
		}
		*p = b
		return nil
	}})
}

// Int declares a whole number from low to high.
func (s *Set) Int(p *int, name string, def, low, high int, usage string) {
	s.add(&option{name: name, def: strconv.Itoa(def), usage: usage, bounds: fmt.Sprintf("%d to %d", low, high), set: func(v string) error {
		n, err := strconv.Atoi(v)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", v)
		}
		return inBounds(p, n, low, high, strconv.Itoa)
	}})
}

// Duration declares a time span such as 500ms or 2m.
func (s *Set) Duration(p *time.Duration, name string, def, low, high time.Duration, usage string) {
	s.add(&option{name: name, def: def.String(), usage: usage, bounds: fmt.Sprintf("%s to %s", low, high), set: func(v string) error {
		d, err := time.ParseDuration(v)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 500ms or 2m", v)
		}
		return inBounds(p, d, low, high, time.Duration.String)
	}})
}

// Bytes declares a size such as 64MiB, 1GB or 4096.
func (s *Set) Bytes(p *int64, name string, def, low, high int64, usage string) {
	s.add(&option{name: name, def: FormatBytes(def), usage: usage, bounds: FormatBytes(low) + " to " + FormatBytes(high), set: func(v string) error {
		n, err := ParseBytes(v)
		if err != nil {
			return err
		}
		return inBounds(p, n, low, high, FormatBytes)
	}})
}

func inBounds[T cmp.Ordered](p *T, v, low, high T, format func(T) string) error {
	if v < low || v > high {
		return fmt.Errorf("%s is outside %s to %s", format(v), format(low), format(high))
	}
	*p = v
	return nil
}

// Origin tells where an option's value came from: "default", "flag", "environment NAME" or "FILE:LINE".
func (s *Set) Origin(name string) string { return s.byName[name].origin }

// Load fills the options in from args, the environment and the file that --config (or its environment
// variable) names. It returns what of args is not an option, and all faults joined.
func (s *Set) Load(args []string, lookup func(string) (string, bool), help io.Writer) (rest []string, err error) {
	var errs []error
	given := map[string]string{}
	fs := flag.NewFlagSet(s.program, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	for _, o := range s.options {
		note := func(v string) error { given[o.name] = v; return nil }
		if o.isBool {
			fs.BoolFunc(o.name, o.usage, note)
		} else {
			fs.Func(o.name, o.usage, note)
		}
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			s.printHelp(help)
			return nil, ErrHelp
		}
		return nil, fmt.Errorf("%w; --help lists the options", s.explainFlag(err))
	}
	env := map[string]string{}
	for _, o := range s.options {
		if v, ok := lookup(s.envName(o.name)); ok && v != "" && !o.flagOnly {
			env[o.name] = v
		}
	}
	apply := func(o *option, v, origin string) {
		if err := o.set(v); err != nil {
			errs = append(errs, fmt.Errorf("%s: option %s: %w", origin, o.name, err))
			return
		}
		o.origin = origin
	}
	override := func(o *option) {
		if v, ok := env[o.name]; ok {
			apply(o, v, "environment "+s.envName(o.name))
		}
		if v, ok := given[o.name]; ok {
			apply(o, v, "flag")
		}
	}
	override(s.byName["config"]) // first: it decides what else is read
	if s.file != "" {
		errs = append(errs, s.loadFile(apply)...)
	}
	for _, o := range s.options {
		if o.name != "config" {
			override(o)
		}
	}
	return fs.Args(), errors.Join(errs...)
}

func (s *Set) envName(option string) string {
	return s.prefix + strings.ToUpper(strings.ReplaceAll(option, "-", "_"))
}

// explainFlag adds the nearest known flag to flag's complaint of an unknown one.
func (s *Set) explainFlag(err error) error {
	name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -")
	if !ok {
		return err
	}
	return fmt.Errorf("unknown option --%s%s", name, s.didYouMean(name))
}

func (s *Set) didYouMean(name string) string {
	best, distance := "", 1+len(name)/2
	for _, o := range s.options {
		if d := editDistance(name, o.name); d < distance {
			best, distance = o.name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// loadFile applies the file's keys.
func (s *Set) loadFile(apply func(o *option, v, origin string)) []error {
	b, err := os.ReadFile(s.file)
	if err != nil {
		return []error{fmt.Errorf("cannot read the configuration: %w", err)}
	}
	var doc, second yaml.Node
	in := yaml.NewDecoder(bytes.NewReader(b))
	switch err := in.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil // an empty file says nothing
	case err != nil:
		return []error{fmt.Errorf("%s: %w", s.file, err)}
	}
	switch err := in.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return []error{fmt.Errorf("%s: %w", s.file, err)}
	default:
		return []error{fmt.Errorf("%s:%d: a second document begins; the file must hold one", s.file, second.Line)}
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return []error{fmt.Errorf("%s:%d: the file must hold lines of the form option: value", s.file, root.Line)}
	}
	var errs []error
	seen := map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		k, v := root.Content[i], root.Content[i+1]
		name := strings.ReplaceAll(k.Value, "_", "-")
		o := s.byName[name]
		switch {
		case name == "config":
			errs = append(errs, fmt.Errorf("%s:%d: key %q can't stand in the file that it names", s.file, k.Line, k.Value))
		case o == nil || o.flagOnly:
			errs = append(errs, fmt.Errorf("%s:%d: unknown key %q%s", s.file, k.Line, k.Value, s.didYouMean(name)))
		case seen[name] != 0:
			errs = append(errs, fmt.Errorf("%s:%d: key %q stands on line %d already", s.file, k.Line, k.Value, seen[name]))
		case v.Kind != yaml.ScalarNode || v.Tag == "!!null":
			errs = append(errs, fmt.Errorf("%s:%d: key %q takes one value", s.file, v.Line, k.Value))
		default:
			apply(o, v.Value, fmt.Sprintf("%s:%d", s.file, k.Line))
		}
		seen[name] = k.Line
	}
	return errs
}

func (s *Set) printHelp(w io.Writer) {
	fmt.Fprintln(w, s.head)
	section := "-"
	for _, o := range s.options {
		if o.section != section {
			section = o.section
			if section != "" {
				fmt.Fprintf(w, "\n%s\n", section)
			} else {
				fmt.Fprintln(w)
			}
		}
		fmt.Fprintf(w, "  --%s", o.name)
		if !o.isBool {
			fmt.Fprint(w, " VALUE")
		}
		fmt.Fprintf(w, "\n        %s", o.usage)
		switch {
		case o.def != "" && o.bounds != "":
			fmt.Fprintf(w, " (default %s; %s)", o.def, o.bounds)
		case o.def != "" && !o.isBool:
			fmt.Fprintf(w, " (default %s)", o.def)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "\nEach option is also an environment variable (%s) and a key of the --config file.\nA flag wins over the environment, the environment over the file.\n", s.envName("data-dir"))
}

// editDistance is Levenshtein's distance.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
