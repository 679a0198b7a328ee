# shellcheck shell=bash
# Ordinary programs on a real mount, as their users run them. Sourced by scripts/suites; needs $mnt, $work and $home.

git_tree() {
    local tree=$mnt/git-tree
    mkdir -p "$tree" && cp -r godrive* docs scripts Cargo.toml "$tree/"
    find "$tree" -type d -empty -delete # git keeps none
    git -C "$tree" init -q && git -C "$tree" add -A
    git -C "$tree" -c user.name=suite -c user.email=suite@localhost commit -qm tree
    git -C "$tree" fsck --strict && [[ -z $(git -C "$tree" status --porcelain) ]]
    git clone -q "$tree" "$mnt/git-clone" && diff -r --exclude=.git "$tree" "$mnt/git-clone"
    git -C "$tree" worktree add -q "$mnt/git-worktree" -b side
    echo changed >>"$mnt/git-worktree/Cargo.toml"
    git -C "$mnt/git-worktree" -c user.name=suite -c user.email=suite@localhost commit -qam side
    git -C "$tree" gc -q --prune=now && git -C "$tree" fsck --strict && git -C "$tree" merge -q --ff-only side
    [[ $(tail -n 1 "$tree/Cargo.toml") == changed ]] && git -C "$tree" worktree remove "$mnt/git-worktree"
}

sqlite_transactions() {
    local db=$mnt/test.db n
    { echo "create table t(n integer primary key, v text);"
      for n in $(seq 1000); do echo "begin; insert into t values($n, hex(randomblob(64))); commit;"; done; } | sqlite3 "$db"
    [[ $(sqlite3 "$db" "pragma integrity_check; select count(*) from t;") == $'ok\n1000' ]]
}

# Counts up in a database with so many transactions.
count_up() {
    local n
    { echo ".timeout 60000"
      for ((n = 0; n < $2; n++)); do echo "begin immediate; update c set n = n + 1; insert into t values('$1', $n); commit;"; done; } | sqlite3 "$1"
}

# Two programs in one database at one time: none of their transactions is lost. $1: journal mode, $2, $3: its path for each.
sqlite_two() {
    local one
    sqlite3 "$2" "pragma journal_mode=$1; create table c(n); insert into c values(0); create table t(who, n);"
    count_up "$2" 200 & one=$!
    count_up "$3" 200
    wait $one
    [[ $(sqlite3 "$3" "pragma integrity_check; select n from c; select count(*) from t;") == $'ok\n400\n400' ]]
}

sqlite_on_two_mounts() {
    mkdir -p "$work/mnt-2" && "$bin/godrive" mount --dir "$home" "$work/mnt-2"
    sqlite_two delete "$mnt/two-mounts.db" "$work/mnt-2/two-mounts.db"
    "$bin/godrive" umount "$work/mnt-2"
}

tar_round_trip() {
    local source=$work/tree
    mkdir -p "$source" && cp -r godrive* docs "$source/"
    tar -C "$source" -cf - . | (mkdir -p "$mnt/untar" && tar -C "$mnt/untar" -xf -)
    diff -r "$source" "$mnt/untar"
}

# A tree with everything that rsync can carry, there and back.
rsync_round_trip() {
    local from=$work/rsync to=$mnt/rsync back=$work/rsync-back
    mkdir -p "$from/folder" && echo one >"$from/file" && ln "$from/file" "$from/folder/hard" && ln -s ../file "$from/folder/soft"
    truncate -s 10M "$from/sparse" && echo end >>"$from/sparse" && mkfifo "$from/fifo" && mknod "$from/device" c 1 3
    setfattr -n user.colour -v green "$from/file" && setfacl -m u:1000:rw,g:2000:r "$from/file" && setfacl -d -m u:1000:rwx "$from/folder"
    chown 1000:2000 "$from/folder/hard" && chmod 4750 "$from/folder/hard" && touch -d '2001-02-03 04:05:06.123456789' "$from/file"
    rsync -aHAXS "$from/" "$to/" && rsync -aHAXS "$to/" "$back/"
    [[ -z $(rsync -aHAXSni --delete "$from/" "$back/") ]] || { rsync -aHAXSni --delete "$from/" "$back/"; return 1; }
    [[ $(stat -c '%i' "$to/file") == $(stat -c '%i' "$to/folder/hard") ]]
    echo more >>"$from/folder/hard" && rsync -aHAXS --inplace "$from/" "$to/" && cmp "$from/file" "$to/file"
}

# The ways in which programs save a file: a copy renamed over it, a backup beside it, in place.
save_patterns() {
    local file=$mnt/saved
    seq 1000 >"$file" && chmod 640 "$file" && ln -s saved "$mnt/saved-link"
    sed -i 's/^500$/five hundred/' "$file"
    [[ $(sed -n 500p "$file") == "five hundred" && $(stat -c %a "$file") == 640 ]]
    vim -u NONE -n -es -c 'set nobackup writebackup backupcopy=no' -c '%s/^501$/five hundred one/' -c 'wq' "$file" </dev/null
    vim -u NONE -n -es -c 'set backup backupcopy=yes' -c '%s/^502$/five hundred two/' -c 'wq' "$mnt/saved-link" </dev/null
    [[ $(sed -n '501,502p' "$file") == $'five hundred one\nfive hundred two' && -f $mnt/saved-link~ && -L $mnt/saved-link ]]
    cp --reflink=auto --sparse=always "$file" "$file-copy" && cmp "$file" "$file-copy"
    install -m 600 "$file" "$file-installed" && cmp "$file" "$file-installed" && mv "$file-installed" "$file" && cmp "$file" "$file-copy"
}

# Many small files made by several processes at once, by rules that look at times.
make_parallel() {
    local tree=$mnt/make n
    mkdir -p "$tree" && for n in $(seq 200); do echo "int f$n(void) { return $n; }" >"$tree/f$n.c"; done
    printf 'all: lib.a\nlib.a: $(patsubst %%.c,%%.o,$(wildcard *.c))\n\tar rcs $@ $^\n%%.o: %%.c\n\tcc -c -o $@ $<\n' >"$tree/Makefile"
    make -s -j 4 -C "$tree" && [[ $(ar t "$tree/lib.a" | wc -l) -eq 200 ]]
    make -q -C "$tree" && touch "$tree/f7.c" && ! make -q -C "$tree" && make -s -j 4 -C "$tree"
    find "$tree" -name '*.o' -delete && [[ -z $(find "$tree" -name '*.o') ]] && find "$tree" -delete && [[ ! -e $tree ]]
}

cargo_build() {
    local tree=$mnt/example
    cargo new -q --vcs none "$tree" && (cd "$tree" && cargo build -q --offline && cargo test -q --offline && [[ $(cargo run -q --offline) == "Hello, world!" ]])
}

debian_package() {
    local tree=$mnt/package
    mkdir -p "$tree/root/DEBIAN" "$tree/root/usr/share/suite"
    printf 'Package: suite\nVersion: 1\nArchitecture: all\nMaintainer: suite <suite@localhost>\nDescription: suite\n' >"$tree/root/DEBIAN/control"
    cp -r docs "$tree/root/usr/share/suite/"
    dpkg-deb --build --root-owner-group "$tree/root" "$tree/suite.deb" >/dev/null
    dpkg-deb -x "$tree/suite.deb" "$tree/unpacked" && diff -r docs "$tree/unpacked/usr/share/suite/docs"
}

# PostgreSQL is killed in the middle of its work, comes back, and no committed transaction is gone.
postgres() {
    local tools data=$mnt/postgres run=$work/postgres-run pid books
    tools=$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n 1)
    as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups env LC_ALL=C HOME="$run" PATH="$tools:$PATH" "$@"; }
    start_postgres() { as_postgres pg_ctl -s -w -t 60 -D "$data" -l "$run/log" -o "-k $run -c listen_addresses=''" start || { tail -n 20 "$run/log"; return 1; }; }
    query() { as_postgres psql -h "$run" -qAt -d postgres -c "$1"; }
    mkdir -p "$data" "$run" && chown postgres:postgres "$data" "$run" && chmod 700 "$data"
    as_postgres initdb -D "$data" >/dev/null && start_postgres
    # Nothing of it stays, however the check ends.
    trap 'as_postgres pg_ctl -s -D "$data" -m immediate stop || true' EXIT
    as_postgres pgbench -h "$run" -q -i -s 1 postgres 2>/dev/null
    as_postgres pgbench -h "$run" -n -c 2 -t 200 postgres >/dev/null 2>&1
    as_postgres pgbench -h "$run" -n -c 2 -T 30 postgres >/dev/null 2>&1 &
    local bench=$!
    until [[ $(query "select count(*) from pgbench_history") -gt 600 ]]; do kill -0 $bench; done
    local before; before=$(query "select count(*) from pgbench_history")
    pid=$(head -n 1 "$data/postmaster.pid")
    # shellcheck disable=SC2046
    kill -9 "$pid" $(pgrep -P "$pid")
    wait $bench || true
    while pgrep -P "$pid" >/dev/null || [[ -d /proc/$pid ]]; do :; done
    start_postgres
    [[ $(query "select count(*) from pgbench_history") -ge $before ]]
    books=$(query "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), (select sum(tbalance) from pgbench_tellers) = (select sum(bbalance) from pgbench_branches)")
    [[ $books == "t|t" ]]
    as_postgres pg_ctl -s -w -D "$data" -m fast stop
    trap - EXIT
}

big_file() {
    head -c 268435456 /dev/urandom >"$work/big" && cp "$work/big" "$mnt/big"
    "$bin/godrive" umount "$mnt" && "$bin/godrive" mount --dir "$home" "$mnt"
    cmp "$work/big" "$mnt/big"
}

fio_verify() {
    fio --name=verify --directory="$mnt" --size=32m --rw=randwrite --bsrange=512-64k --ioengine=psync --verify=xxhash --do_verify=1 \
        --verify_fatal=1 --verify_state_save=0 --randseed=7 --fsync=64 --output="$work/fio.out" || { cat "$work/fio.out"; return 1; }
}

# What pjdfstest's link::link_count_max asks, where it does not know the limit of the file system.
most_links() {
    python3 - "$mnt/links" <<'END'
import errno, os, sys
folder = sys.argv[1]
os.mkdir(folder)
first = f"{folder}/0"
os.mknod(first)
for number in range(1, 65_000):
    os.link(first, f"{folder}/{number}")
try:
    os.link(first, f"{folder}/one-more")
    sys.exit("65,001 names")
except OSError as error:
    assert error.errno == errno.EMLINK, error
assert os.stat(first).st_nlink == 65_000
os.unlink(f"{folder}/1")
os.link(first, f"{folder}/one-more")
END
    find "$mnt/links" -delete
}
