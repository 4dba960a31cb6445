package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kvstore/backup"
	files "kvstore/internal/record"
	"kvstore/wire"
)

func (a *app) backupCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "backup", Short: "Copy all records of a cluster, check a copy, write one back",
		Long: `Copy all records as of one moment into a file, check such a file, and write it into a cluster again. Values, tags,
content types, encodings and times to live come back as they were, in their namespaces; versions and times of creation are
new ones. With --namespace only that one is copied or restored. docs/backup.md describes the file.`,
		Example: `  kvctl backup create all.kvbackup
  kvctl backup verify all.kvbackup
  kvctl backup restore all.kvbackup --endpoints 10.0.1.10:7001`,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown verb %q: backup takes create, restore, verify or info", args[0])
			}
			return usagef("backup takes a verb: create, restore, verify or info")
		},
	}
	c.AddCommand(a.backupCreateCmd(), a.backupRestoreCmd(), a.backupVerifyCmd(), a.backupInfoCmd())
	return c
}

func (a *app) backupCreateCmd() *cobra.Command {
	var patience time.Duration
	c := &cobra.Command{
		Use: "create FILE|-", Short: "Copy all records into a file, as of one moment", Args: exactArgs("FILE"),
		Long: `Copy all records, or those of --namespace, into a file, as of one moment. The file appears under its name when it is
complete and on disk, and not before; - writes to stdout, where a copy that failed has no end, which verify and restore see.

The cluster keeps that moment while it is read, for ten minutes at most: a copy that would take longer fails, and is
begun anew.`,
		Example: `  kvctl backup create all.kvbackup
  kvctl backup create - --namespace app | ssh other 'cat > app.kvbackup'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if patience < 0 {
				return usagef("--patience is %v: it must be 0 or more", patience)
			}
			if err := a.checkBackupNamespace(); err != nil {
				return err
			}
			if args[0] == "-" {
				if a.outTTY {
					return usagef("a backup is not for a terminal: name a file, or redirect stdout")
				}
				_, err := a.takeBackup(cmd.Context(), a.out, patience)
				return err
			}
			return a.backupFile(cmd.Context(), args[0], patience)
		},
	}
	addPatience(c.Flags(), &patience)
	return c
}

// checkBackupNamespace checks --namespace, which is left out for all.
func (a *app) checkBackupNamespace() error {
	if a.namespace != "" && !wire.ValidNamespaceName(a.namespace) {
		return usagef("%q is no name of a namespace", a.namespace)
	}
	return nil
}

// backupFile makes a backup in a file beside the named one, flushes it, and renames it when it is complete.
func (a *app) backupFile(ctx context.Context, name string, patience time.Duration) (err error) {
	part := name + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) // it holds everything that is secret in the store
	if err != nil {
		return fmt.Errorf("cannot make a backup: %w", err)
	}
	closed := false
	defer func() {
		if err != nil {
			if !closed {
				err = errors.Join(err, f.Close())
			}
			if rerr := os.Remove(part); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}()
	sum, err := a.takeBackup(ctx, f, patience)
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("cannot make a backup: %w", err)
	}
	closed = true
	if err := f.Close(); err != nil {
		return fmt.Errorf("cannot make a backup: %w", err)
	}
	if err := os.Rename(part, name); err != nil {
		return fmt.Errorf("cannot make a backup: %w", err)
	}
	if err := files.SyncDir(filepath.Dir(name)); err != nil {
		return fmt.Errorf("%q is complete, but may be gone after a power cut: %w", name, err)
	}
	return a.sayBackup(map[string]any{"file": name}, sum, nil)
}

// takeBackup writes a backup to w.
func (a *app) takeBackup(ctx context.Context, w io.Writer, patience time.Duration) (sum backup.Summary, err error) {
	bar := a.newProgress("backup", 0, false)
	err = a.withBackupStore(ctx, func(s *backupStore) error {
		sum, err = backup.Take(ctx, s, w, backup.TakeOptions{
			Namespace: a.namespace, Progress: advance(bar), Patience: patienceOf(patience), Waiting: a.waiting("backup", patience),
		})
		return err
	})
	if err != nil {
		bar.stop()
		return sum, backupError(fmt.Errorf("the backup is not complete: %w", err))
	}
	bar.finish("backed up")
	return sum, nil
}

// advance tells a bar of counts that grow.
func advance(bar *progress) func(backup.Count) {
	var told backup.Count
	return func(c backup.Count) {
		bar.add(int64(c.Records-told.Records), int64(c.Bytes-told.Bytes))
		told = c
	}
}

// patienceOf gives --patience as package backup has it, where 0 is its default.
func patienceOf(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

// backupError sorts what package backup says.
func backupError(err error) error {
	var partial *backup.PartialError
	switch {
	case errors.As(err, &partial):
		// Whatever ended it: a part is written.
		return &storeError{kind: kindFailed, err: err}
	case errors.Is(err, backup.ErrNotEmpty), errors.Is(err, backup.ErrNamespace):
		return &storeError{kind: kindExists, err: err} // nothing was changed
	}
	return err
}

func (a *app) backupRestoreCmd() *cobra.Command {
	var (
		merge    bool
		patience time.Duration
	)
	c := &cobra.Command{
		Use: "restore FILE|-", Short: "Write a backup into a cluster", Args: exactArgs("FILE"),
		Long: `Write the records of a backup, or those of --namespace in it, into a cluster. All of the file is verified first; from -
it is kept in a temporary file for that (TMPDIR). Namespaces that are missing are created with their settings, those that
are there keep theirs. Records that have expired meanwhile are left out, others keep the deadline that they had.

A namespace that holds records already is refused (exit code 4) and nothing is changed, unless --merge is given: records of
the same keys are then replaced, and others stay. Nobody else should write to the namespaces meanwhile.

A restore is not atomic. One that fails says how many records are written; the same command with --merge goes over all
of them once more.`,
		Example: `  kvctl backup restore all.kvbackup
  kvctl backup restore all.kvbackup --namespace app --merge`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if patience < 0 {
				return usagef("--patience is %v: it must be 0 or more", patience)
			}
			if err := a.checkBackupNamespace(); err != nil {
				return err
			}
			f, total, err := a.seekable(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }() // it was only read
			return a.restore(cmd.Context(), f, total, merge, patience)
		},
	}
	c.Flags().BoolVar(&merge, "merge", false, "go on where there are records already: replace those of the same keys, leave others")
	addPatience(c.Flags(), &patience)
	return c
}

func (a *app) restore(ctx context.Context, f io.ReadSeeker, total int64, merge bool, patience time.Duration) error {
	a.talk("verifying %s\n", bytesText(total))
	bar := a.newProgress("restore", 0, false)
	var sum backup.Summary
	err := a.withBackupStore(ctx, func(s *backupStore) (err error) {
		sum, err = backup.Restore(ctx, s, f, backup.RestoreOptions{
			Namespace: a.namespace, Merge: merge, Progress: advance(bar), Patience: patienceOf(patience), Waiting: a.waiting("restore", patience), Now: a.now,
		})
		return err
	})
	if err != nil {
		bar.stop()
		return backupError(err)
	}
	bar.finish("restored")
	if sum.Expired > 0 {
		a.talk("left out %d records that have expired\n", sum.Expired)
	}
	return a.sayBackup(map[string]any{"namespaces_created": sum.Created, "expired_skipped": sum.Expired}, sum, nil)
}

// seekable opens a backup to be read twice; stdin is copied to a file without a name first.
func (a *app) seekable(name string) (f *os.File, size int64, err error) {
	if name != "-" {
		if f, err = os.Open(name); err != nil {
			return nil, 0, fmt.Errorf("cannot read the backup: %w", err)
		}
		st, err := f.Stat()
		if err != nil {
			return nil, 0, errors.Join(fmt.Errorf("cannot read the backup: %w", err), f.Close())
		}
		return f, st.Size(), nil
	}
	if f, err = os.CreateTemp("", "kvctl-restore-*"); err != nil {
		return nil, 0, fmt.Errorf("cannot keep the backup until it is verified: %w", err)
	}
	if err = os.Remove(f.Name()); err == nil {
		if size, err = io.Copy(f, a.in); err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("cannot keep the backup until it is verified: %w", err), f.Close())
	}
	return f, size, nil
}

func (a *app) backupVerifyCmd() *cobra.Command {
	return &cobra.Command{
		Use: "verify FILE|-", Short: "Check every byte of a backup, without a cluster", Args: exactArgs("FILE"),
		Long: `Read all of a backup and check it: the checksums of its blocks, of each value and of the whole, the order and the
number of its records, and that it has its end. It exits 1 and says what is wrong where it can't be restored.`,
		Example: `  kvctl backup verify all.kvbackup`,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.readBackup(args[0], func(r io.Reader) error {
				h, sum, err := backup.Verify(r)
				if err != nil {
					return err
				}
				a.talk("OK: complete, and all checksums are right\n")
				rows := namespaceRows(h, sum.Each)
				if a.output == "table" {
					if err := a.printf("%s%s", headerText(h), namespaceTable(h, rows)); err != nil {
						return err
					}
				}
				return a.sayBackup(headerFields(h), sum, rows)
			})
		},
	}
}

func (a *app) backupInfoCmd() *cobra.Command {
	return &cobra.Command{
		Use: "info FILE|-", Short: "Show what a backup tells about itself, without checking it", Args: exactArgs("FILE"),
		Long:    `Read the header of a backup: where and when it was made, at which revision, of which namespaces. The rest is not read.`,
		Example: `  kvctl backup info all.kvbackup`,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.readBackup(args[0], func(r io.Reader) error {
				b, err := backup.NewReader(r)
				if err != nil {
					return err
				}
				h := b.Header()
				fields := headerFields(h)
				fields["revision"], fields["namespaces"] = fmt.Sprint(h.Revision), namespaceRows(h, nil)
				if a.output != "table" {
					return a.writeJSON(fields)
				}
				return a.printf("%s%s", headerText(h), namespaceTable(h, nil))
			})
		},
	}
}

// readBackup opens a backup that is read once.
func (a *app) readBackup(name string, f func(io.Reader) error) error {
	if name == "-" {
		return f(a.in)
	}
	in, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("cannot read the backup: %w", err)
	}
	defer func() { _ = in.Close() }() // it was only read
	return f(in)
}

// namespaceRow is a namespace of a backup in JSON.
type namespaceRow struct {
	Name      string            `json:"name"`
	CreatedAt time.Time         `json:"created_at"`
	Settings  namespaceSettings `json:"settings"`
	Records   *uint64           `json:"records,omitempty"`
	Bytes     *uint64           `json:"bytes,omitempty"`
}

// namespaceRows lists the namespaces of a backup, with counts where they are known.
func namespaceRows(h *backup.Header, each []backup.Count) (rows []namespaceRow) {
	for i := range h.Namespaces {
		n := &h.Namespaces[i]
		s := &n.Settings
		row := namespaceRow{Name: n.Name, CreatedAt: time.UnixMicro(n.CreatedAt).UTC(), Settings: namespaceSettings{
			BytesMax: s.BytesMax, KeysMax: s.KeysMax, OpsPerSecond: s.OpsPerSecond, WatchesMax: s.WatchesMax, Compress: s.Compress.String(),
		}}
		if each != nil {
			row.Records, row.Bytes = &each[i].Records, &each[i].Bytes
		}
		rows = append(rows, row)
	}
	return rows
}

func headerFields(h *backup.Header) map[string]any {
	return map[string]any{"cluster_id": hex.EncodeToString(h.ClusterID[:]), "created_at": h.CreatedAt}
}

func headerText(h *backup.Header) string {
	return fmt.Sprintf("cluster %x, revision %d, made %s\n", h.ClusterID, h.Revision, h.CreatedAt.Format(time.RFC3339))
}

func namespaceTable(h *backup.Header, rows []namespaceRow) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	// Writing to a strings.Builder never fails.
	_, _ = fmt.Fprintln(w, "NAMESPACE\tCREATED\tRECORDS\tBYTES\tCOMPRESS")
	for i := range h.Namespaces {
		n := &h.Namespaces[i]
		records, size := "-", "-"
		if rows != nil {
			records, size = fmt.Sprint(*rows[i].Records), fmt.Sprint(*rows[i].Bytes)
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", cell(n.Name), time.UnixMicro(n.CreatedAt).UTC().Format(time.RFC3339), records, size, n.Settings.Compress)
	}
	_ = w.Flush()
	return b.String()
}

// sayBackup prints what a backup holds, or what became of one: as JSON, with rows in the place of the number of namespaces
// if there are any, or in a line.
func (a *app) sayBackup(fields map[string]any, sum backup.Summary, rows []namespaceRow) error {
	if a.output == "table" || a.output == "raw" {
		return a.printf("revision %d: %d records, %d bytes, %d namespaces; the backup has %d bytes\n", sum.Revision, sum.Records, sum.Bytes, sum.Namespaces, sum.StreamBytes)
	}
	fields["revision"], fields["records"], fields["bytes"], fields["stream_bytes"] = fmt.Sprint(sum.Revision), sum.Records, sum.Bytes, sum.StreamBytes
	fields["namespaces"] = sum.Namespaces
	if rows != nil {
		fields["namespaces"] = rows
	}
	return a.writeJSON(fields)
}

// backupStore is a cluster through the Go client, as a backup.Source and a backup.Target. A client works in one namespace:
// there is one for each that is under way, one at a time.
type backupStore struct {
	a    *app
	main store

	namespace string
	in        store // for namespace; nil: none yet
}

// withBackupStore opens a store, hands it to f and closes it.
func (a *app) withBackupStore(ctx context.Context, f func(*backupStore) error) error {
	// Both verbs name namespaces themselves.
	plain := *a
	plain.namespace = ""
	return plain.with(ctx, func(s store) error {
		b := &backupStore{a: &plain, main: s}
		err := f(b)
		// A failure to say good-bye changes nothing about what was answered.
		return errors.Join(err, b.leave())
	})
}

// leave closes the store of the last namespace.
func (b *backupStore) leave() error {
	if b.in == nil {
		return nil
	}
	in := b.in
	b.in = nil
	if err := in.Close(); err != nil {
		return fmt.Errorf("cannot close the connection: %w", err)
	}
	return nil
}

// enter gives a store for a namespace.
func (b *backupStore) enter(ctx context.Context, namespace string) (store, error) {
	if b.in != nil && b.namespace == namespace {
		return b.in, nil
	}
	if err := b.leave(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, b.a.timeout)
	defer cancel()
	in, err := b.a.open(ctx, openOptions{Endpoints: b.a.endpoints, Timeout: b.a.timeout, Namespace: namespace})
	if err != nil {
		return nil, err
	}
	b.namespace, b.in = namespace, in
	return in, nil
}

// Admin implements backup.Admin.
func (b *backupStore) Admin(ctx context.Context, request []byte) ([]byte, error) {
	var q adminRequest
	if err := json.Unmarshal(request, &q); err != nil {
		return nil, fmt.Errorf("cannot read a request of our own: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, b.a.timeout)
	defer cancel()
	return b.main.Admin(ctx, q)
}

// Status implements backup.Source.
func (b *backupStore) Status(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, b.a.timeout)
	defer cancel()
	return b.main.Status(ctx)
}

// Revision implements backup.Source.
func (b *backupStore) Revision(ctx context.Context) (wire.Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, b.a.timeout)
	defer cancel()
	return b.main.Revision(ctx)
}

// Scan implements backup.Source.
func (b *backupStore) Scan(ctx context.Context, namespace string, at wire.Revision, from []byte, each func(*backup.Record) error) error {
	s, err := b.enter(ctx, namespace)
	if err != nil {
		return err
	}
	var rec backup.Record
	for r, err := range s.List(ctx, listOptions{Start: string(from), Read: readOptions{Revision: at}}) {
		if err != nil {
			return err
		}
		rec = backup.Record{Key: []byte(r.Key), Value: r.Value, Ext: rec.Ext[:0], Meta: wire.Meta{
			Version: r.Version, CreatedAt: r.CreatedAt.UnixMicro(), UpdatedAt: r.UpdatedAt.UnixMicro(), Checksum: r.Checksum,
		}}
		if !r.ExpiresAt.IsZero() {
			rec.Meta.ExpiresAt = r.ExpiresAt.UnixMicro()
		}
		for _, name := range slices.Sorted(maps.Keys(r.Tags)) {
			rec.Ext = wire.AppendExtTag(rec.Ext, name, r.Tags[name])
		}
		if r.ContentType != "" {
			rec.Ext = wire.AppendExtString(rec.Ext, wire.ExtContentType, r.ContentType)
		}
		if r.Encoding != "" {
			rec.Ext = wire.AppendExtString(rec.Ext, wire.ExtEncoding, r.Encoding)
		}
		if err := each(&rec); err != nil {
			return err
		}
	}
	return nil
}

// Put implements backup.Target.
func (b *backupStore) Put(ctx context.Context, namespace string, batch []backup.Put) error {
	s, err := b.enter(ctx, namespace)
	if err != nil {
		return err
	}
	items := make([]putItem, len(batch))
	now := b.a.now()
	for i := range batch {
		p := &batch[i]
		items[i] = putItem{Key: string(p.Key), Value: p.Value, Options: putOptions{TTL: p.TTL(now)}}
		o := &items[i].Options
		for ext := p.Ext; len(ext) > 0; {
			t, v, rest, err := wire.NextExt(ext)
			if err != nil {
				return err
			}
			switch ext = rest; t {
			case wire.ExtTag:
				name, value, err := wire.SplitTag(v)
				if err != nil {
					return err
				}
				if o.Tags == nil {
					o.Tags = make(map[string]string)
				}
				o.Tags[string(name)] = string(value)
			case wire.ExtContentType:
				o.ContentType = string(v)
			case wire.ExtEncoding:
				o.Encoding = string(v)
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, b.a.timeout)
	defer cancel()
	return s.PutAll(ctx, items)
}
